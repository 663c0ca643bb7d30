"""The gRPC services: convert, call, convert. Rules live in `admission` and `metering`, work in `engine`."""
