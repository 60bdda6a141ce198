"""The monitor's tables: a file for each kind of thing that is kept, with every statement that touches it."""
