/*
 * How to get at a volume from elsewhere: its NBD addresses, and commands that take them.
 */

/** @typedef {{ protocol: string, address: string, uri: string | null }} Listener */

/**
 * @typedef {object} Way one listener's way to an export
 * @property {string} uri
 * @property {string} where for whom it is good
 * @property {{ label: string, line: string }[]} commands
 */

/**
 * @param {readonly Listener[]} listeners as /v1/health lists them
 * @param {string} name of the export
 * @param {string} host of the server as this page reached it, for listeners on every address
 * @returns {Way[]}
 */
export function waysTo(listeners, name, host) {
  return listeners.flatMap(({ protocol, address, uri }) => {
    if (protocol !== "nbd" || uri === null) return [];
    const full = exportUri(uri, name, host);
    const unix = address.startsWith("unix:");
    const { hostname, port } = unix ? { hostname: "", port: "" } : authority(full);
    return [
      {
        uri: full,
        where: unix || isLoopback(hostname) ? "from the server's own machine" : "over the network",
        commands: [
          { label: "Look at it", line: `nbdinfo ${quote(full)}` },
          { label: "Copy it to a file", line: `nbdcopy ${quote(full)} ${quote(`${name.replace("@", "-")}.raw`)}` },
          {
            label: "Boot it",
            line: `qemu-system-x86_64 -m 2G -drive ${quote(`file=${full.replaceAll(",", ",,")},format=raw,if=virtio`)}`,
          },
          {
            label: "Make it a block device",
            line: unix
              ? `nbd-client -unix ${quote(address.slice("unix:".length))} /dev/nbd0 -name ${name}`
              : `nbd-client ${hostname} ${port} /dev/nbd0 -name ${name}`,
          },
        ],
      },
    ];
  });
}

/**
 * The address of an export, given that of the default export on the same listener.
 * @param {string} uri
 * @param {string} name
 * @param {string} host instead of “every address”
 */
function exportUri(uri, name, host) {
  const [path = "", query] = uri.replace(/\/\/(0\.0\.0\.0|\[::\])(?=[:/])/, `//${host}`).split("?");
  return `${path}${path.endsWith("/") ? "" : "/"}${name}${query === undefined ? "" : `?${query}`}`;
}

/** @param {string} uri */
function authority(uri) {
  const match = /^[a-z+]+:\/\/(\[[^\]]+\]|[^:/]*)(?::(\d+))?/.exec(uri);
  return { hostname: (match?.[1] ?? "").replace(/^\[|\]$/g, ""), port: match?.[2] ?? "10809" };
}

/** @param {string} hostname */
function isLoopback(hostname) {
  return hostname === "localhost" || hostname === "::1" || hostname.startsWith("127.");
}

/**
 * For a shell.
 * @param {string} text
 */
function quote(text) {
  return /^[\w@%+=:,./-]+$/.test(text) ? text : `'${text.replaceAll("'", `'\\''`)}'`;
}
