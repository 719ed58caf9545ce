"""RNN, GRU and LSTM in terms of Scan: the cell of a step, and its surroundings."""
