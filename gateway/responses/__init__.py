"""POST /v1/responses: OpenAI's newer shape around the same answers. Nothing is stored."""
