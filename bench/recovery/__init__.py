"""How long a client waits for its next token when a worker dies, freezes or loses its connections.

Real processes, whose engines are mocks with a cost model, so that what is measured is the time to
notice and to place again, and the prompt's second computation has a known length.
"""
