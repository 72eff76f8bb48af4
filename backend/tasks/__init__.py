"""The Celery side: thin named tasks and what runs beside them in a worker node."""
