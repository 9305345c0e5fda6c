"""How much memory a run takes in each of its phases, and which settings fit: counted before anything is loaded."""
