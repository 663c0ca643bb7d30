"""The appliance against its limit: the same exported model in process, unlicensed, and licensed, in one run."""
