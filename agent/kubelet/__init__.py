"""The gateway to the node's kubelet: what it tells on its unix sockets, as plain nouns; its fake lies beside it."""
