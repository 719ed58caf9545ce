"""The hardware of layers in numbers: shapes, designs, channels, and what all kinds of layers share."""
