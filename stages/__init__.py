"""One file a command: open inputs, one library call, write the output."""
