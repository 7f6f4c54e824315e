"""From files to a fine-tuned model, a module for each kind of thing that is learnt from."""
