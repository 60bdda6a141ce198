"""`make bench-inference`: ours and the servers people use today, side by side, with one model and the same rows."""
