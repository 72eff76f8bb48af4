"""The engine: accept, keep, render and deliver email. Knows neither FastAPI nor Celery, and reads no settings."""
