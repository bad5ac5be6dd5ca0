/** Volumes, snapshots, layers and blobs have ids of 32 hexadecimal digits; files and directories are called like them. */
export const isId = (text: string): boolean => /^[0-9a-f]{32}$/.test(text);
