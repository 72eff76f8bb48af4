"""The HTTP side: routers, schemas, authentication, problem details."""
