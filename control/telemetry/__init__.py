"""OpenTelemetry, for who asks for it: metrics and spans of what operators do, to a collector on this machine."""
