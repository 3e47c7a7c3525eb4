//! Control protocol of kfsd.
