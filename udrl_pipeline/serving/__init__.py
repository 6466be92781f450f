"""`udrl serve`: a student behind HTTP. Requests that wait together go through the model together."""
