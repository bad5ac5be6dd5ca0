import type { BlockDevice } from "../block-device.ts";
import type { BufferPool } from "./buffer-pool.ts";
import type { MetaContext } from "./meta-context.ts";
import type { ReceiveBuffer } from "./receive-buffer.ts";
import type { ReplyWriter } from "./reply-writer.ts";
import type { RequestMeter } from "./request-meter.ts";

/** What was negotiated, and where a connection's parts are. */
export interface TransmissionContext {
  readonly device: BlockDevice;
  readonly readOnly: boolean;
  readonly structured: boolean;
  readonly contexts: readonly MetaContext[];
  readonly pool: BufferPool;
  readonly received: ReceiveBuffer;
  readonly writer: ReplyWriter;
  readonly meter: RequestMeter;
  /** Reading from the client may go on, or must stop. */
  setReading(reading: boolean): void;
  /** The client broke the protocol: the connection ends at once. */
  violation(reason: string): void;
  /** The connection ends at once because of an error that is ours. */
  defect(error: unknown): void;
  /** Everything started has ended and every reply is handed over. @param clean after NBD_CMD_DISC */
  finished(clean: boolean): void;
  /** The connection was abandoned, and the last operation that it had started has ended. */
  quiet(): void;
  /** The device failed an operation; the client has its error reply. */
  failed(what: string, error: unknown): void;
}
