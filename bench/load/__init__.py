"""Load for any OpenAI endpoint: what is asked and when, who sends it, what came of it."""
