"""Truck Mate: the grammar of truck drivers' requests, the words it uses, and the noise a microphone adds."""
