"""The judge: the laws that a correct LeNet training stack obeys, as Hypothesis properties."""
