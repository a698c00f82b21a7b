"""Where tokenizers start when pictures or steps are few: fitted to some pictures' patches, whatever these show."""
