"""What a person types: one file a command, each with `main(argv)`."""
