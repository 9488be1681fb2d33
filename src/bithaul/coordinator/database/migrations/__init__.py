"""Schema migrations, shipped inside the package; `database.migrate` runs them."""
