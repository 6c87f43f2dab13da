"""Values that every floor knows: options, config, model, errors."""
