/** Something that an operator should know about; shown at start and in /v1/health until it is mended. */
export interface Warning {
  /** stable, for scripts */
  code: string;
  message: string;
}
