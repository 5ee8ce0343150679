"""Pure renderers: results in, text or figures out; nothing here computes or prints."""
