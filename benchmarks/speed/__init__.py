"""The yardsticks of speed: ours and its peers in one run, interleaved, as ratios."""

import os

os.environ["ENV_FILE"] = os.devnull  # before the settings are imported: nothing of this checkout's own
