"""The PostgreSQL database: row policies that isolate brands, and connections. `onbrand.storage` stores bytes."""
