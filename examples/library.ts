// A disk of one's own, in one's own process: made, written to, and served to any NBD client until Ctrl-C.
//
//   UV_THREADPOOL_SIZE=18 node library.ts DIRECTORY unix:/tmp/disk.sock
//   nbdcopy --flush 'nbd+unix:///scratch?socket=/tmp/disk.sock' - | head -c 30
import { once } from "node:events";
import { IoBuffer, parseListenAddress, parseSize, Ullage } from "ullage";

const [dataDir = "ullage-data", address = "127.0.0.1:10809"] = process.argv.slice(2);

const ullage = await Ullage.open({ dataDir });
try {
  const known = await ullage.listVolumes();
  if (known.length === 0) {
    // `from: { source: "https://example.org/debian.raw" }` would make it from an image, as quickly.
    await ullage.createVolume({ name: "scratch", size: parseSize("64M") });
  }

  const disk = await ullage.getDevice("scratch");
  const stay = await disk.attach({
    protocol: "library",
    address: "examples/library.ts",
    remote: false,
    writable: true,
    close: (reason) => console.error(`the disk is taken away: ${reason}`),
  });
  const text = IoBuffer.from(Buffer.from("written through the library\n"));
  await disk.write(0, text.length, text, 0);
  await disk.flush(); // from here on it survives a power cut
  stay.release(true);

  await ullage.serveNbd([parseListenAddress(address)]);
  const uris = ullage.health().listeners.map(({ uri }) => uri);
  console.log(`serving ${uris.join(" ")}`);
  await Promise.race([once(process, "SIGINT"), once(process, "SIGTERM")]);
} finally {
  await ullage.close();
}
