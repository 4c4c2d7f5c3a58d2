"""One trainer for every architecture and every kind of dictionary."""
