"""Generated from proto/baton/v1 by ``python -m baton.stubs``; do not edit."""
