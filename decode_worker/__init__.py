"""The decode worker: fills its cache with KV it reads, and generates in a continuous batch."""
