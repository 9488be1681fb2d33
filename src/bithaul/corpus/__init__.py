"""What the model learns from: the Truck Mate generator, importers, the tokenizer and binary shards."""
