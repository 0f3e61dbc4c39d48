"""How well estimates of drift and decay agree with simulated truth; methods are what they return, not how they work."""
