"""A server of text over HTTP, in the form of OpenAI's API: sequences of many requests share the steps of one batch."""
