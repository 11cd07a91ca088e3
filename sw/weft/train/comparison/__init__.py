"""Methods of training compared: same network, start, data order and number of trials."""
