"""The laws that every correct LeNet training stack obeys, and the judge that applies them to a stack."""
