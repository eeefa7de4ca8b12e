"""Many runs: which there are, how they are started, and the tables that they fill."""
