"""Plain data: ids, events, commands, inputs, payloads, failures, policies, errors. No behaviour beyond encoding."""
