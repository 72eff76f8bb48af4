"""Every fault by its name, with what it is: those that all services are put to, and those that only ours is."""

from chaos import faults, ours
from chaos.exposure import EXPOSURE
from chaos.smtp_faults import OURS_SMTP, SMTP_FAULTS

FAULTS = {**faults.FAULTS, **SMTP_FAULTS, **EXPOSURE}
OURS = {**ours.OURS, **OURS_SMTP}
