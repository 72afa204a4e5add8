"""`es-service compare`: methods against full training and against shorter full runs."""
