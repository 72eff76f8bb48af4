"""The checks of `python doctor.py`: each looks at one thing, and yields what it finds as `mail.findings.Finding`s."""
