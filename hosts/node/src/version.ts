export const PROTOCOL_VERSION = 1;

/** This package's own version; a test compares it with package.json. */
export const PRODUCT = "0.1.0";
