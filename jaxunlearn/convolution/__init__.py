"""How convolutions are computed on a CPU, where XLA's own are slow: exchanged in the program."""
