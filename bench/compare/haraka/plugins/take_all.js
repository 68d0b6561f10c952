// Takes every recipient and hands the mail to Haraka's own queue.
'use strict';

exports.hook_rcpt = (next, connection) => {
    connection.relaying = true;
    next(OK);
};
