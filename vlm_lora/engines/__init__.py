"""What the core knows of ZeRO and FSDP: configurations by name, precision said by launchers, sharding arithmetic."""
