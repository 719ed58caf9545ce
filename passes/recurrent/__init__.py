"""RNN, GRU and LSTM in terms of Scan: what a step computes, and what is around it."""
