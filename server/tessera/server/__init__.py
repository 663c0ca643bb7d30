"""The appliance: gRPC services over admission, metering and a batching engine.

`services/` converts and calls, `admission/` and `metering/` hold pure rules with the clock passed in, `engine/` runs
sealed programs, `boundary` turns every error into a status, and `app` is the one place that builds them all::

    settings = load_settings(Path("appliance.toml"))
    asyncio.run(serve(settings))
"""
