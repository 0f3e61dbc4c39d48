"""One module per stage of the workflow: opens stores, calls one function, writes the result."""
