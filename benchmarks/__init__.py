"""How fast the stack is: throughput of each step of training, timed only after its answer has been verified."""
